// Empty does nothing: what it takes to run is what any Go program takes.
package main

func main() {}
