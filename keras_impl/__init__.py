"""The U-Net as a functional model of Keras 3, trained by compile, fit and callbacks."""
