"""The container in the cradle: how it is asked, and what it means by its answers."""
