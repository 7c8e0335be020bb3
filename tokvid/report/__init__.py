"""Reports: pictures of clips, plots, and the one HTML page that holds them."""
