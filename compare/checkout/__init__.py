"""What is compared: a shop whose orders reserve goods, take money and hand over a parcel; its bank; and its oracle."""
