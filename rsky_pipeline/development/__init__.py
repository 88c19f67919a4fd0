"""Programs for contributors, which are not installed.

In: the declarations of settings, metrics and rules, and the source tree. Out: generated parts of
docs/ (`documents`, by `make docs`), the program file (`binary`, by `make binary`), the calls of a
real run (`trace`). Each program is a file; read the one that you run. Nothing of the pipeline may
import this package.
"""
