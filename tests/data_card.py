"""What a model sees of the stored pixels."""

from some_cards import image_facts as data_card

__all__ = ["data_card"]
