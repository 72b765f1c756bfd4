"""White-box attacks: gradients through the whole path of a picture into the model, and a search without gradients."""
