"""Students, losses, and the two phases of the distillation."""
