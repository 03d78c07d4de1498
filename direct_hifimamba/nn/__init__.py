"""Networks, each a folder as in `direct.nn`, and the layers that they share."""
