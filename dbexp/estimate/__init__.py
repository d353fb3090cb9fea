"""What a sweep would take on a card: memory, time, disk and money, without weights and without the card."""
