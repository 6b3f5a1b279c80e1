// Package parse makes numbers of the text of kernel files. Its functions are pure:
// they open nothing, keep nothing between calls, and leave their input as it is.
//
// The path that a function takes is for its errors, which name file and field. A
// field that cannot be read is absent from what is returned beside the error, and
// takes no other with it. Text that is not known is passed over.
package parse
