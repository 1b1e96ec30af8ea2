"""What the four kinds of recipes say of themselves: a JSON Schema, a page of fields, and a recipe as resolved."""
