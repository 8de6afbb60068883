"""Tasks trained together: heads, losses and the balancers that join their gradients."""
