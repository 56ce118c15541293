// What go-spiffe says of chains: `go run . DIRECTORY UNIX-SECONDS` reads DIRECTORY/CASE/chain/N.der and
// DIRECTORY/CASE/bundles/TRUST-DOMAIN/N.der, and prints for each case one line: its name, the SPIFFE ID or "refused", and
// the error, with tabs between them.
package main

import (
	"crypto/x509"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("expected: DIRECTORY UNIX-SECONDS")
	}
	seconds, err := strconv.ParseInt(os.Args[2], 10, 64)
	if err != nil {
		log.Fatal(err)
	}
	cases, err := os.ReadDir(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for _, each := range cases {
		id, err := judge(filepath.Join(os.Args[1], each.Name()), time.Unix(seconds, 0))
		if err != nil {
			fmt.Printf("%s\trefused\t%s\n", each.Name(), strings.Join(strings.Fields(err.Error()), " "))
		} else {
			fmt.Printf("%s\t%s\t\n", each.Name(), id)
		}
	}
}

func judge(directory string, now time.Time) (spiffeid.ID, error) {
	bundles := x509bundle.NewSet()
	names, err := os.ReadDir(filepath.Join(directory, "bundles"))
	if err != nil {
		log.Fatal(err)
	}
	for _, name := range names {
		bundle := x509bundle.New(spiffeid.RequireTrustDomainFromString(name.Name()))
		for _, root := range files(filepath.Join(directory, "bundles", name.Name())) {
			certificate, err := x509.ParseCertificate(root)
			if err != nil {
				return spiffeid.ID{}, fmt.Errorf("a root of the bundle: %w", err)
			}
			bundle.AddX509Authority(certificate)
		}
		bundles.Add(bundle)
	}
	id, _, err := x509svid.ParseAndVerify(files(filepath.Join(directory, "chain")), bundles, x509svid.WithTime(now))
	return id, err
}

func files(directory string) [][]byte {
	var contents [][]byte
	for index := 0; ; index++ {
		content, err := os.ReadFile(filepath.Join(directory, fmt.Sprintf("%d.der", index)))
		if os.IsNotExist(err) {
			return contents
		}
		if err != nil {
			log.Fatal(err)
		}
		contents = append(contents, content)
	}
}
