"""Import: a network of somebody, its weights, preprocessing and labels, as a checkpoint, after they were tried out."""
