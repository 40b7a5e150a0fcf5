"""One function a figure, each from a table to an Altair chart; one theme."""
