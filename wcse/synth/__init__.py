"""Training data from weak-cheap and strong-expensive models, matched in cost, measured and crash-safe."""
