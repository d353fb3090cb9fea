"""What the storybook's world looks like: everything that is drawn."""
