"""Pictures, curves and the HTML page of a comparison: arrays in, files out."""
