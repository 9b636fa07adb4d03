"""The ground floor: what two rooms need stands here, and nothing here imports a room."""
