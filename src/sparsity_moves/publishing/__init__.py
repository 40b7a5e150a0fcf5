"""From MyST notebooks to the published book: run the notebooks, gather the assets, build the pages."""
