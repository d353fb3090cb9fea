"""The networks that metrics look through: one file each."""
