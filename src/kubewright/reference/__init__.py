"""The reference of all variables, generated from the roles' defaults and argument specs."""
