"""Tables from files, whatever their format: what each holds is for its reader to say."""
