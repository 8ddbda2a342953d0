"""The one exception that data raise: a sentence for the person who gave them."""


class DataError(ValueError):
    """Data that cannot be used as they are; the message is one sentence saying what to do."""
