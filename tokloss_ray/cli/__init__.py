"""The commands of `tokloss`, one module each: options in, one call into the package, what it says on the terminal."""
