"""Do the tests bite? `bugs` lists one-line bugs, `make mutate` plants them one by one."""
