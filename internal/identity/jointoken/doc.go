// Package jointoken has the tokens by which a machine joins a mesh: the text
// that a person carries from the operator to the machine, and the operator's
// record of it. The text holds a secret; the record holds only its SHA-256. A
// token names one node, pins the root certificate, expires, and is consumed
// once, also when several operators share the directory of records.
//
// It knows nothing of certificates or of the network. A Store is safe for
// concurrent use, also by several processes.
package jointoken
