"""What only code written against matterport's library needs."""
