"""Classification of image files, by this process or by many."""
