// Package parse parses the text of kernel files into numbers. Its functions are pure:
// they open nothing, keep nothing between calls, and do not change their input.
//
// The path that a function takes is for its errors, which name file and field. A field
// that cannot be read is absent from the result that is returned with the error, and does
// not affect other fields. Unknown text is skipped.
package parse
