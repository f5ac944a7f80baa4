"""What several tests share: sample inputs, data and small tools."""
