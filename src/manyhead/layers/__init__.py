"""What mixers and networks share: norms, positions, feed-forward, gates and experts."""
