"""What heads attend to, which heads matter, saliency."""
