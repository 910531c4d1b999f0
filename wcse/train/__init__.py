"""Fine-tuning on training data: supervised, and label-and-rationale as in Distilling Step-by-Step."""
