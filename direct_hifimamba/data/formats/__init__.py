"""Files of k-space and images: a module per format."""
