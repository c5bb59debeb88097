"""What a model computes: a Program, and the way to it from an nn.Module."""
