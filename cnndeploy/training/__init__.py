"""Training: a recipe, the loop that follows it, and the checkpoint that comes out."""
