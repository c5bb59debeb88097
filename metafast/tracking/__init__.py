"""What planning looks at, and how it notices that something has changed since."""
