// Package docs contains the documents that the program serves itself, for hosts without
// internet access.
package docs

import _ "embed"

// Runbooks is runbooks.md: a section for each alert.
//
//go:embed runbooks.md
var Runbooks []byte
