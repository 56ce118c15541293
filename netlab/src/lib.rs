//! Network namespaces, links and processes in them: the machine that the demo and the scenario tests run on
