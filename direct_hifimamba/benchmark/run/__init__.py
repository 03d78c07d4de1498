"""Training, prediction and measurement of cost, in processes of their own."""
