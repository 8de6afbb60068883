"""Task vectors, masks and merged models, over safetensors files, tensor by tensor."""
