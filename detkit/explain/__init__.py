"""What each stage of a detector did with one image: traces, drawings, a page."""
