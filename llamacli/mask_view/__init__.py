"""The picture of a mask: as data, as text, as shapes, as files."""
