"""All the runs in one linked view, in the page and in JupyterLab."""
