"""Models of DIRECT compared on the same files, masks, losses and budget."""
