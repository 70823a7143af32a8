"""Where in an image objects may be: class-agnostic boxes, made on the fly or kept in a store for a data set."""
