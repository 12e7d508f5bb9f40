"""Import: a network of somebody, its weights, preprocessing and labels, as a checkpoint, with proof that they fit."""
