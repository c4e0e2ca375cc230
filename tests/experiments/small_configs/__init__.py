"""`CONFIG` of every method, in a file of its name: as small as all of its stages allow."""
