"""The composition root: builds every part, owns the nursery tree, drains. The parts do not know each other."""
