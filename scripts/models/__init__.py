"""Models of the tests and the demos, each made into a folder that `octonode models add` takes."""
