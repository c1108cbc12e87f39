"""The commands of the command line beside the run: main.py NAME ...; each is a module with `main`."""
