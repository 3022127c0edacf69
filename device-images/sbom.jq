# CycloneDX 1.6 of an image: Debian's packages of root and initrd from mkosi's manifests, wheels
# from wheels.lock. --arg: name, version, epoch, wheels; --rawfile debs: packages.lock.
def deb: {
    type: "library", name, version,
    purl: "pkg:deb/debian/\(.name)@\(.version | @uri)?arch=\(.architecture)&distro=trixie"
};
def hashed($digests): . as $c
    | ($digests["\(.name)_\(.version | sub("^[0-9]+:"; ""))"]) as $sha
    | if $sha then .hashes = [{alg: "SHA-256", content: $sha}] else . end;
($debs | split("\n") | map(select(test("^[0-9a-f]{64} ")) | split(" ")
    | {key: (.[2] | split("/")[-1] | gsub("%2b"; "+") | gsub("%7e"; "~") | split("_")[0:2] | join("_")), value: .[0]})
    | from_entries) as $digests
| {
    bomFormat: "CycloneDX", specVersion: "1.6", version: 1,
    metadata: {
        timestamp: ($epoch | tonumber | todate),
        component: {type: "operating-system", name: $name, version: $version}
    },
    components: (
        ([.[].packages[] | select(.type == "deb")] | unique_by([.name, .version]) | map(deb | hashed($digests)))
        + ($wheels | split("\n") | map(select(test("==")) | capture("^(?<name>[^=]+)==(?<version>\\S+)( --hash=sha256:(?<sha>\\S+))?$")
            | {type: "library", name, version, purl: "pkg:pypi/\(.name | ascii_downcase)@\(.version)"}
                + (if .sha then {hashes: [{alg: "SHA-256", content: .sha}]} else {} end)))
    )
}
